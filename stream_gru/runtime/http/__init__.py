"""What a running daemon shows over HTTP, and the three commands it takes.

    app.py         the server and its table of routes
    api.py         status, streams, commands
    feed.py        the sink that hands outputs to those who listen
    events.py      outputs as server-sent events
    connection.py  what a client may do to the server: little, and not for long
    effort.py      how much work those who ask may cause
    hosts.py       which names the server answers to

Nothing here touches pipeline or sinks: what is shown is asked for by callables of the daemon, commands are put in its
queue.
"""
