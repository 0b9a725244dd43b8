"""The commands: from a request to a record, each in a file of its own. Requests are read here and nowhere below."""
