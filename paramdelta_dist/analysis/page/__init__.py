"""The report as one HTML file, of figures that others have measured. Knows no weights."""
