"""Files: whole or not there, read by a schema, never pickled."""
