"""Numbers from codes and codes from numbers, compiled. A codec gets bytes and says what they mean; it knows nothing of files or plans."""
