"""BABILong: questions on facts that are scattered in a long text."""
