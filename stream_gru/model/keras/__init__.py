"""The network in Keras and the files made of it; needs TensorFlow."""
