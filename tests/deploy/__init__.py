"""What is shipped for an installation: units, rules, alerts, dashboards, images."""
