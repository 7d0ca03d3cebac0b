"""One file per stage: wiring between configuration, data, science and artifacts."""
