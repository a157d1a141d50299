def load_engine(name, bundle):
    raise NotImplementedError  # placeholder, will be overwritten
