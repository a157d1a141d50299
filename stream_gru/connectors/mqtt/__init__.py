"""Talking to an MQTT broker: one connection that never gives up, topics, and the ledger of acknowledgements."""
