"""Three real servers behind a real Envoy, on loopback: what a cluster does when one of them goes."""
