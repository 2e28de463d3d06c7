"""Other people's clients against our doors: run by hand, since their sources are not ours to ship."""
