"""Reports of a costed graph: data, JSON, tables, HTML."""
