"""Types, protocols, errors, timestamps and stored records that every other package uses.  Imports no other package."""
