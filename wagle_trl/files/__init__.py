"""Files: written atomically, validated by schemas, never pickled."""
