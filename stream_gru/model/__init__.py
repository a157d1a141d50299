"""The model: bundle, manifest, engines, the Keras network, export."""
