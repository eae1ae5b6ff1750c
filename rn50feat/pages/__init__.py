"""HTML pages for people: results with their pictures, and the network as a diagram."""
