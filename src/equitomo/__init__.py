"""Equivariant imaging for limited-angle tomography."""
