ServiceResources = dict
