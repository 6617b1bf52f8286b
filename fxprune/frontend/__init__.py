"""The way in: an nn.Module, an ExportedProgram or a .pt2 file becomes a canonical Program."""
