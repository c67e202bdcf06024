"""Every secret that tests give to a node stands here, so that whatever was written can be searched for all of them.

API keys are made by the node; a test that looks for them adds them to this list itself.
"""

REDIS_PASSWORD = "redis-hush-7Qm2xV"
REDIS_URL_PASSWORD = "redis-url-hush-9Zt4kD"
DOCKER_PASSWORD = "docker-hush-3Wp8nB"
BEARER = "bearer-hush-5Lr1cY"
CONTAINER_TOKEN = "container-hush-6Gs0hJ"
SERVICE_URL_PASSWORD = "service-url-hush-4Jd9vS"
NO_KEY = "stoker_no-key-hush-2Fb7uE"

ALL = (REDIS_PASSWORD, REDIS_URL_PASSWORD, DOCKER_PASSWORD, BEARER, CONTAINER_TOKEN, SERVICE_URL_PASSWORD, NO_KEY)
