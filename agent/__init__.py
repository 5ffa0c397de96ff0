"""The daemon on a build machine."""
