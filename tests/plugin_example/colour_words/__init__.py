"""Texts as bags of hashed words, pictures as coarse grids of colour: small, and far from useless on flat drawings."""

from colour_words.encoder import ColourWords, ColourWordsProcessor

__all__ = ["ColourWords", "ColourWordsProcessor"]
