"""Commands to a running daemon: parsing, queue, execution, MQTT transport, pause filter."""
