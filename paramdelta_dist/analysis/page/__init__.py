"""The report as one HTML file. Draws figures that others have measured; reads no weights."""
