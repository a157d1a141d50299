"""The files for an installation: units, rules, alerts, dashboards, images."""
