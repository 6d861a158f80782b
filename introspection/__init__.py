"""What every residual block did: quantities, the question, the document and the pictures. Needs no HTTP."""
