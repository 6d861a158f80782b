"""The artifact, which export writes and other packages read: manifest, preprocessing, decoding, location."""
