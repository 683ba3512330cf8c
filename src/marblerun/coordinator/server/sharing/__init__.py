"""How Coordinators on one state hand the key encryption key to each other (protocol, section 11.4).

An instance that starts on a machine where none has run yet asks the others, each side verifying the other one's
evidence. What is compared is in :mod:`marblerun.policy.sharing`; when who asks is in ``distributor``.
"""
