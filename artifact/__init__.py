"""What an export writes and everything else reads: manifest, preprocessing, decoding, where artifacts lie."""
