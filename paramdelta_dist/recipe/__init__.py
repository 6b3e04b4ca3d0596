"""The YAML that people write, as checked values. The only room that knows pydantic; it opens no model and no store of weights."""
