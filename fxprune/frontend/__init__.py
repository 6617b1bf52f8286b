"""Front end: from an nn.Module, an ExportedProgram or a .pt2 file to a canonical Program."""
