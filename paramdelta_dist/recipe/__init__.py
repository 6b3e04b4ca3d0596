"""The YAML that people write, as checked values. The only room that knows pydantic; knows no open model."""
