"""Everything that opens a path: model files, weights, example inputs, exports and bundles."""
