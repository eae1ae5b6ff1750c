"""The nearest rows: through a FAISS index beside the store, and exactly."""
