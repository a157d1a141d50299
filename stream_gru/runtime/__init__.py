"""A configuration carried out: `plan` reads and checks, `builders` make the parts, `gateway` runs and reloads them."""
