"""``python -m stream_gru`` is ``stream-gru``."""

from stream_gru.cli.main import main

if __name__ == "__main__":
    main()
