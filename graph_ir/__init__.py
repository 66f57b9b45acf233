"""The operator graph: equations, operators, backward pass, logical axes."""
