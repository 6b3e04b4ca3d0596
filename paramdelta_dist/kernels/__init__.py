"""The arithmetic on tensors. Imports torch, so import from here only where numbers are computed; knows no files, plans or stores."""
