"""Which pretraining helps on these scans, with how many labelled patients?"""
