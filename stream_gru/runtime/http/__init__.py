"""The HTTP server of a running daemon: metrics, status, streams, outputs as events, and commands.

    server.py     the server and its routes
    api.py        status, streams, commands
    broadcast.py  hands outputs to the clients that listen
    sse.py        outputs as server-sent events
    limits.py     connections, time and work of clients; host names

Nothing here changes pipeline or sinks: callables of the daemon answer, and commands go to its queue.
"""
