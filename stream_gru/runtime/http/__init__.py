"""The HTTP server of a running daemon: metrics, probes, status, streams, outputs, commands.

    server.py     the server and its routes
    api.py        status, streams, commands
    broadcast.py  distributes outputs to connected clients
    limits.py     connections, time and work of clients; host names

Nothing here touches the pipeline or the sinks: callables of the daemon return what is shown, and commands go into its
queue.
"""
