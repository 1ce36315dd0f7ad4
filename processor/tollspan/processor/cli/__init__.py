"""The command line: one module a command, `app` assembles them, `output` prints rows."""
