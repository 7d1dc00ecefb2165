"""One thin file per foreign library or model family; the only place where their code is called."""
