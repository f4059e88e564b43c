"""One self-contained HTML page that shows conversions beside their source: quality against bytes, heads, calculator."""
