"""The network in Keras and the files built from it; needs TensorFlow."""
