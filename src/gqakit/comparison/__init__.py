"""Methods at equal bytes on a user's own model: one table, one page."""
