"""The hoisted form as a torch optimizer: groups, decay, state."""
