"""Examples of what can be added to Octavo, as docs/extending.md describes it."""
