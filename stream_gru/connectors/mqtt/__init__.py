"""MQTT: a connection that reconnects until it is closed, subscriptions, publishing, tracking of acknowledgements."""
