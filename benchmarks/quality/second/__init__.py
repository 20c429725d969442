"""Study 2: every foldable re-parametrization, by real runs of the package; see PROTOCOL.md."""
