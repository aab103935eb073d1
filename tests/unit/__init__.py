"""Tests of one module each, without root, network or engine."""
