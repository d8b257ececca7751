"""The hands: one function per step, `name(context) -> Done | Failed | HandBack`."""
