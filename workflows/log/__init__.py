"""Any log of events that one YAML file describes: what it says, and how it is read."""
